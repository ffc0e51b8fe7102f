-- Takes the place of a probe, if there is one.
-- KEYS[1]  the probes that have not ended, as JSON: token to when it began (ms of its taker's clock)
-- ARGV     token, now (ms), how long a probe may take (ms), most probes at once,
--          then for 1, 2, … live probes: how long after the latest the next may begin (ms)
-- Answers 1 if the place is the caller's, else 0. Uses no more commands than the ACL in docs/operations.md grants.
local now, ttl, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local probes, live, latest = {}, 0, 0
for token, began in pairs(cjson.decode(redis.call('GET', KEYS[1]) or '{}')) do
    -- Left out: who never came back, and who was let in by a clock that runs ahead.
    if began > now - ttl and began < now + 1000 then
        probes[token] = began
        live = live + 1
        latest = math.max(latest, began)
    end
end
if live >= most or (live > 0 and now - latest < tonumber(ARGV[4 + live])) then
    return 0
end
probes[ARGV[1]] = now
redis.call('SET', KEYS[1], cjson.encode(probes), 'PX', ttl)
return 1
