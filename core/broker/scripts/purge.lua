-- All waiting messages of some queues of one tenant are thrown away; or all delayed ones of a domain.
--
-- ARGV: root, domain, tenant or "" for what is delayed, queue or "" for all of the tenant's
-- Returns how many there were.
local root, domain, tenant = ARGV[1], ARGV[2], ARGV[3]
local P, count = root .. ':' .. domain, 0
local queues = ARGV[4] ~= '' and {ARGV[4]} or redis.call('ZRANGE', P .. ':q:' .. tenant, 0, -1)
for _, queue in ipairs(queues) do
  local length = redis.call('LLEN', P .. ':m:' .. queue)
  for first = 0, length - 1, 1000 do
    for _, entry in ipairs(redis.call('LRANGE', P .. ':m:' .. queue, first, first + 999)) do
      note(root, 'SREM', entry)
    end
  end
  redis.call('DEL', P .. ':m:' .. queue)
  redis.call('ZREM', P .. ':q:' .. tenant, queue)
  count = count + length
end
-- The delayed stand by the time at which they are due: all are looked at, as purges are rare.
local delayed = 0
local looks = tenant == '' or ARGV[4] ~= ''
for _, member in ipairs(looks and redis.call('ZRANGE', P .. ':delayed', 0, -1) or {}) do
  if tenant == '' or string.match(member, '^[^|]*|([^|]*)|') == ARGV[4] then
    delayed = delayed + redis.call('ZREM', P .. ':delayed', member)
    note(root, 'SREM', string.match(member, '^[^|]*|[^|]*|(.*)$'))
  end
end
if count > 0 then
  if tonumber(redis.call('ZINCRBY', P .. ':waiting', -count, tenant)) <= 0 then
    redis.call('ZREM', P .. ':waiting', tenant)
    redis.call('ZREM', P .. ':ring', tenant)
    redis.call('SREM', P .. ':capped', tenant)
  end
  redis.call('DECRBY', P .. ':total', count)
end
return count + delayed
