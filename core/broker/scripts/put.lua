-- A message joins its queue, and its tenant the ring if there is room; or it waits until it is due.
--
-- ARGV: root, domain, tenant, queue, rank, delivery tag, correlation id, message,
--       due (ms since the epoch; 0 = now)
-- Returns, where tenants have caps, the tenant's backlog: how many wait, how many run, and the seconds
-- that one takes of late ("" where nobody knows yet).
local root, domain, tenant, queue, rank = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local P, now, due = root .. ':' .. domain, now_ms(), tonumber(ARGV[9])
local entry = table.concat({exact(math.max(now, due)), rank, ARGV[6], ARGV[7], ARGV[8]}, '|')
if due > now then
  redis.call('ZADD', P .. ':delayed', due, tenant .. '|' .. queue .. '|' .. entry)
  note(root, 'SADD', entry)
else
  push(root, domain, tenant, queue, rank, entry, false)
  wake(root, domain, tenant)
end
return CAPPED[domain] and backlog_of(P, tenant) or false
