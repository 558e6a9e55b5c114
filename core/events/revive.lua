-- Make sure that a session's next seq is far above all that may have been given; see `append.lua`.
--
-- KEYS: the marks
-- ARGV: floor: a seq that was given; gap; seconds to live; pace
-- Returns the log's tail.
local tail = tonumber(redis.call('HGET', KEYS[1], 'seq'))
if not tail or tail < tonumber(ARGV[1]) then
  local time = redis.call('TIME')
  tail = math.max(ARGV[1] + ARGV[2], math.floor((time[1] + time[2] / 1000000) * ARGV[4]))
  redis.call('HSET', KEYS[1], 'seq', tail)
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return tail
