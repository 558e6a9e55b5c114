-- The tenant that the ring gave is served once: its best message is leased to a worker.
--
-- Best is the smallest put time + rank * ageing: high goes first, and low is not for ever last.
-- The tenant pays 1/weight of virtual time, and rejoins the ring if it has more work and room.
-- The worker's leases live on: it is alive, or it would not ask.
--
-- ARGV: root, domain, tenant, its start time in the ring, worker, lease (ms), ageing (ms a rank)
-- Returns queue, delivery tag, message; or nothing.
local root, domain, tenant, start, worker = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local P, ageing = root .. ':' .. domain, tonumber(ARGV[7])

if start > number_at('GET', P .. ':clock') then redis.call('SET', P .. ':clock', exact(start)) end
if not has_room(root, domain, tenant) then
  redis.call('SADD', P .. ':capped', tenant)
  return false
end

local best, score
for _, queue in ipairs(redis.call('ZRANGE', P .. ':q:' .. tenant, 0, -1)) do
  local entry = redis.call('LINDEX', P .. ':m:' .. queue, -1)
  while entry and not string.match(entry, ENTRY) do
    -- The put script did not put it: nobody can read it.
    redis.call('LPUSH', root .. ':dead', queue .. '|not a message|' .. take(P, tenant, queue))
    entry = redis.call('LINDEX', P .. ':m:' .. queue, -1)
  end
  if entry then
    local put, rank = string.match(entry, ENTRY)
    if not best or put + rank * ageing < score then best, score = queue, put + rank * ageing end
  end
end
if not best then return false end

local entry = pop(P, tenant, best)
local _, _, tag, correlation, message = string.match(entry, ENTRY)
redis.call('HINCRBY', P .. ':running', tenant, 1)
redis.call('INCR', P .. ':leased')
redis.call('HSET', root .. ':w:' .. worker, tag, table.concat({domain, tenant, best, entry}, '|'))
redis.call('ZADD', root .. ':workers', now_ms() + ARGV[6], worker)
if correlation ~= '' then redis.call('HSET', root .. ':held', correlation, worker .. '|' .. tag) end
redis.call('HSET', P .. ':finish', tenant, exact(start + 1 / limits_of(root, domain, tenant)))
wake(root, domain, tenant)
return {best, tag, message}
