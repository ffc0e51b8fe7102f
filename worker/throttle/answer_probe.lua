-- Ends a probe that was answered. The gate opens with enough of them, and is half open before.
--
-- KEYS[1]  the probes, as in take_probe.lua
-- KEYS[2]  the gate, as JSON; `answered`: probes since it was last struck
-- ARGV[1]  the probe's token
-- ARGV[2]  how many answers open the gate
-- ARGV[3]  how long a probe may take (ms)
-- ARGV[4]  how long a half-open gate is kept without any news (ms)
--
-- Answers 1 if the gate is open now, 0 if it is half open, and -1 if the probe had ended before.
-- Uses only commands that the ACL in docs/operations.md grants.
local probes = cjson.decode(redis.call('GET', KEYS[1]) or '{}')
if not probes[ARGV[1]] then
    return -1
end
local stored = redis.call('GET', KEYS[2])
local gate = stored and cjson.decode(stored)
local answered = gate and (gate.answered or 0) + 1
if not gate or answered >= tonumber(ARGV[2]) then
    redis.call('DEL', KEYS[1], KEYS[2])
    return 1
end
probes[ARGV[1]] = nil
if next(probes) then
    redis.call('SET', KEYS[1], cjson.encode(probes), 'PX', ARGV[3])
else
    redis.call('DEL', KEYS[1])
end
gate.answered = answered
redis.call('SET', KEYS[2], cjson.encode(gate), 'PX', ARGV[4])
return 0
