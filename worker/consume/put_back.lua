-- Puts a noted message back on its list and drops its note, in one step, unless somebody did so meanwhile.
--
-- KEYS[1]  the notes, as in take.lua
-- KEYS[2]  their index, as in take.lua
-- KEYS[3]  the list
-- ARGV[1]  the delivery tag
-- ARGV[2]  the note as the caller has read it
-- ARGV[3]  the message as it goes on the list
-- ARGV[4]  'next' to be the next one taken, 'last' to be taken after all that lie there
--
-- Answers 1 if it was put back, 0 if the note is not the one that was read.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
    return 0
end
redis.call(ARGV[4] == 'next' and 'RPUSH' or 'LPUSH', KEYS[3], ARGV[3])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
