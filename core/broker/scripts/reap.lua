-- A worker that has not renewed is dead: its messages go back to the heads of their queues.
--
-- In slices: a worker may have thousands of leases, and a script holds up everybody. The worker's
-- name goes last, so that a reaper that dies half-way is followed by the next.
--
-- ARGV: root, how many messages at most
-- Returns how many went back.
local root, limit = ARGV[1], tonumber(ARGV[2])
-- Workers that ended without leases stand before it, and hide nobody.
local worker
for _, dead in ipairs(redis.call('ZRANGE', root .. ':workers', '-inf', now_ms(), 'BYSCORE', 'LIMIT', 0, 1000)) do
  if redis.call('EXISTS', root .. ':w:' .. dead) == 1 then worker = dead break end
  redis.call('ZREM', root .. ':workers', dead)
end
if not worker then return 0 end
local leases = {}
for index, tag in ipairs(redis.call('HRANDFIELD', root .. ':w:' .. worker, limit)) do
  leases[index] = release(root, worker, tag)
end
-- The oldest goes back last: then it is at the head.
local function newer(one, other)
  return tonumber(string.match(one.entry, '^%d+')) > tonumber(string.match(other.entry, '^%d+'))
end
table.sort(leases, newer)
for _, lease in ipairs(leases) do
  push(root, lease.domain, lease.tenant, lease.queue, lease.rank, lease.entry, true)
  wake(root, lease.domain, lease.tenant)
end
if redis.call('EXISTS', root .. ':w:' .. worker) == 0 then redis.call('ZREM', root .. ':workers', worker) end
return #leases
