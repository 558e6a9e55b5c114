-- Adds what one process has counted, once: a batch that comes again, since its answer was lost, is not added.
-- ARGV: root, process, number of the batch, seconds that tenants are kept, seconds that processes are,
-- then (tenant or "", field, amount)*.
-- Keys: root:all (hash), root:of:<tenant> (hash), root:tenants (sorted set, by time), root:seen:<process>.
local root, seen = ARGV[1], ARGV[1] .. ':seen:' .. ARGV[2]
if tonumber(ARGV[3]) <= tonumber(redis.call('GET', seen) or '0') then
  return 0
end
local now = tonumber(redis.call('TIME')[1])
local told = {}
for i = 6, #ARGV, 3 do
  local tenant = ARGV[i]
  if tenant == '' then
    redis.call('HINCRBYFLOAT', root .. ':all', ARGV[i + 1], ARGV[i + 2])
  else
    redis.call('HINCRBYFLOAT', root .. ':of:' .. tenant, ARGV[i + 1], ARGV[i + 2])
    told[tenant] = true
  end
end
for tenant in pairs(told) do
  redis.call('ZADD', root .. ':tenants', now, tenant)
  redis.call('EXPIRE', root .. ':of:' .. tenant, ARGV[4])
end
redis.call('ZREMRANGEBYSCORE', root .. ':tenants', 0, now - tonumber(ARGV[4]))
redis.call('SET', seen, ARGV[3], 'EX', ARGV[5])
return 1
