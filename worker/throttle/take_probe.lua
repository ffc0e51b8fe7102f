-- Takes the place of a probe, if there is one.
-- KEYS[1]  a sorted set: tokens of the probes that have not ended, by when they began (ms of the takers' clocks)
-- ARGV     token, now (ms), how long a probe may take (ms), most probes at once,
--          then for 1, 2, … live probes: how long after the latest the next may begin (ms)
-- Answers 1 if the place is the caller's, else 0.
local now, ttl, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ttl) -- never came back
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + 1000, '+inf') -- taken by a clock that runs ahead
local live = redis.call('ZCARD', KEYS[1])
if live >= most then
    return 0
end
if live > 0 then
    local latest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
    if now - tonumber(latest[2]) < tonumber(ARGV[4 + live]) then
        return 0
    end
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ttl)
return 1
