-- Ends one probe.
--
-- KEYS[1]  as in take_probe.lua
-- ARGV[1]  the probe's token
-- ARGV[2]  how long a probe may take (ms)
--
-- Answers 1 if a probe of this token had not ended, else 0.
local probes = cjson.decode(redis.call('GET', KEYS[1]) or '{}')
if not probes[ARGV[1]] then
    return 0
end
probes[ARGV[1]] = nil
if next(probes) then
    redis.call('SET', KEYS[1], cjson.encode(probes), 'PX', ARGV[2])
else
    redis.call('DEL', KEYS[1])
end
return 1
