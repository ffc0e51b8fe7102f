-- Takes messages off their lists. Notes each message that is more than a hint, in the same step.
-- A worker that is killed before it reads the answer loses hints only. The ledger publishes those again.
--
-- KEYS[1]   hash of the notes. Field: delivery tag. Value: '[message, "exchange", "routing key"]', which is kombu's form
-- KEYS[2]   sorted set of the leases. Member: delivery tag. Score: when the lease began, in seconds of this server's clock
-- KEYS[3]…  lists to take from, 255 at most. The first one is emptied first
-- ARGV[1]   number: messages to take, at most
-- ARGV[2]   number: messages to take from lists of lone messages, at most
-- ARGV[3]   number: messages to take from lists of bulk messages, at most
-- ARGV[4]   text with one character for each list, in the order of KEYS: 'l' lone, 'b' bulk
-- ARGV[5]   number: the time now, in seconds of this server's clock. It is the beginning of each lease
-- ARGV[6]   text that each hint contains. A message that contains it is not noted
-- ARGV[7]   number: bytes of the largest message that is answered whole. A larger one is cut to its two ends
-- ARGV[8]   text that delivery tags made here begin with. No other call has the same
-- ARGV[9]   Lua pattern that matches a message of our task
-- ARGV[10]  text. With the key of a list behind it, it is the list for messages that are too large and of another task
--
-- Answers an array of three parts, one after the other:
--   1. one string, two bytes for each message. First byte: the position of its list, from 0. Second byte: 0 not noted,
--      1 noted, 2 noted and cut, 3 moved whole to the list of ARGV[10]
--   2. the messages, '' for those that were moved
--   3. the delivery tags of the noted messages, in their order
--
-- Nothing may fail here after a message was popped, because it is nowhere else. A server that is full takes the writes
-- that follow: it refuses the first write of a script only.
local left = { all = tonumber(ARGV[1]), l = tonumber(ARGV[2]), b = tonumber(ARGV[3]) }
local kinds, now, hint_mark, longest = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local tag_prefix, ours, aside_prefix = ARGV[8], ARGV[9], ARGV[10]
local codes, taken, tags = {}, {}, {}

local function name(value, other)
    return cjson.encode(type(value) == 'string' and value or other)
end

local function note(tag, text)
    if type(tag) ~= 'string' or #tag > 255 or not string.find(tag, '^[%w_.:-]+$')
        or redis.call('HGET', KEYS[1], tag) then
        tag = tag_prefix .. ':' .. #taken
    end
    redis.call('ZADD', KEYS[2], now, tag)
    redis.call('HSET', KEYS[1], tag, text)
    tags[#tags + 1] = tag
end

for i = 3, #KEYS do
    local kind = string.sub(kinds, i - 2, i - 2)
    local wanted = math.min(left.all, left[kind])
    local found = wanted > 0 and redis.pcall('RPOP', KEYS[i], wanted)
    if type(found) == 'table' then
        if found.err then
            if #taken == 0 then return found end
            break
        end
        for _, raw in ipairs(found) do
            local is_noted = 0
            if #raw > longest and string.find(raw, '^%s*{') and not string.find(raw, ours) then
                redis.call('LPUSH', aside_prefix .. KEYS[i], raw)
                raw = ''
                is_noted = 3
            elseif #raw > longest then
                raw = string.sub(raw, 1, 8192) .. string.sub(raw, -65536)
                note(nil, raw)
                is_noted = 2
            elseif not string.find(raw, hint_mark, 1, true) then
                local is_json, message = pcall(cjson.decode, raw)
                local headers = is_json and type(message) == 'table' and message.headers
                local properties = is_json and type(message) == 'table' and message.properties
                if type(properties) ~= 'table' then properties = {} end
                local info = type(properties.delivery_info) == 'table' and properties.delivery_info
                if info or (type(headers) == 'table' and headers.id ~= nil) then
                    info = info or {}
                    note(properties.delivery_tag, '[' .. raw .. ',' .. name(info.exchange, '') .. ','
                        .. name(info.routing_key, '') .. ']')
                    is_noted = 1
                end
            end
            taken[#taken + 1] = raw
            codes[#taken] = string.char(i - 3, is_noted)
        end
        left.all = left.all - #found
        left[kind] = left[kind] - #found
    end
end
table.insert(taken, 1, table.concat(codes))
for _, tag in ipairs(tags) do taken[#taken + 1] = tag end
return taken
