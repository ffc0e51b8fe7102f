-- Puts a noted message back on its list and drops its note, in one step. Does nothing if the note has changed.
--
-- KEYS[1]  hash of the notes. Field: delivery tag. Value: '[message, "exchange", "routing key"]', which is kombu's form
-- KEYS[2]  sorted set of the leases. Member: delivery tag. Score: when the lease began, in seconds of this server's clock
-- KEYS[3]  list to put the message on
-- ARGV[1]  delivery tag of the message
-- ARGV[2]  the note as the caller read it. Another note means that another worker put the message back meanwhile
-- ARGV[3]  the message as it is to lie on the list
-- ARGV[4]  'next': the message is the next one to be taken. 'last': it is taken after all that lie on the list
--
-- Answers 1 if the message was put back, 0 if the note was another one.
local tag, note, message, place = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('HGET', KEYS[1], tag) ~= note then
    return 0
end
redis.call(place == 'next' and 'RPUSH' or 'LPUSH', KEYS[3], message)
redis.call('HDEL', KEYS[1], tag)
redis.call('ZREM', KEYS[2], tag)
return 1
