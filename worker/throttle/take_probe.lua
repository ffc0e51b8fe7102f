-- Begins a probe, if one may begin now.
--
-- KEYS[1]  the probes that have not ended, as JSON: token to the probe's start (ms of this server's clock)
-- ARGV[1]  the new probe's token
-- ARGV[2]  now (ms; '' for this server's clock, which is the same for all)
-- ARGV[3]  how long a probe may take (ms)
-- ARGV[4]  most probes at once
-- ARGV[5]… for 1, 2, … live probes: how long after the latest the next may begin (ms)
--
-- Answers 1 if the probe has begun, else 0. Uses only commands that the ACL in docs/operations.md grants.
local now, ttl, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local probes, live, latest = {}, 0, 0
for token, began in pairs(cjson.decode(redis.call('GET', KEYS[1]) or '{}')) do
    -- Left out: probes that are past their time, and those from before the clock was set back.
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
