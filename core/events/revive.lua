-- Make sure that a session's next seq is far above all that may have been given; see `beyond.lua`.
--
-- KEYS: the marks
-- ARGV: floor: a seq that was given; gap; seconds to live; pace; "1" when nobody can be deleting the
--       session at this moment: what was said of one that had its id holds no more
-- Returns the log's tail.
local tail = tonumber(redis.call('HGET', KEYS[1], 'seq'))
if not tail or tail < tonumber(ARGV[1]) then
  tail = beyond(ARGV[1], ARGV[2], ARGV[4])
  redis.call('HSET', KEYS[1], 'seq', tail)
end
if ARGV[5] == '1' then redis.call('HDEL', KEYS[1], 'gone') end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return tail
