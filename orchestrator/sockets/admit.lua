-- Let sockets in, as far as all web processes that live have room together, and tell our own count.
--
-- Invariant: the counts of the processes that live never add up to more than the limit.
--
-- KEYS: the counts (hash: process, "<sockets> <seconds>": how many it had when it told last)
-- ARGV: our process, how many sockets it has, how many want to come in, how many all may have
--       together, seconds after which a process that tells nothing is dead
-- Returns how many come in.
local counts, process, own, wanting = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local others = 0
local told = redis.call('HGETALL', counts)
for i = 1, #told, 2 do
  local count, at = string.match(told[i + 1], '(%S+) (%S+)')
  if now - at > tonumber(ARGV[5]) then
    redis.call('HDEL', counts, told[i])
  elseif told[i] ~= process then
    others = others + count
  end
end
local admitted = math.max(0, math.min(wanting, ARGV[4] - others - own))
redis.call('HSET', counts, process, string.format('%d %.3f', own + admitted, now))
redis.call('EXPIRE', counts, 60)
return admitted
