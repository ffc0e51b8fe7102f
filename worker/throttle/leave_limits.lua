-- Ends the share of a worker whose calls have ended.
--
-- KEYS[1]  as in exchange.lua
-- ARGV[1]  the worker's id
-- ARGV[2]  how long the state is kept (ms)
--
-- Answers 1 if the worker had a share, else 0.
local state = cjson.decode(redis.call('GET', KEYS[1]) or '{}')
if not state.workers or not state.workers[ARGV[1]] then
    return 0
end
state.workers[ARGV[1]] = nil
redis.call('SET', KEYS[1], cjson.encode(state), 'PX', ARGV[2])
return 1
