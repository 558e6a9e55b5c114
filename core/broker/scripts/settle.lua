-- A lease ends: the slot is free again, and the tenant wakes if it waits for one.
--
-- A lease that has been taken back meanwhile is nobody's: nothing happens, so a late or repeated
-- ack can never free somebody else's slot.
--
-- ARGV: root, worker, delivery tag, and where the message goes:
--       "" (it is done), "head" (of its queue), or the reason for which it is dead; and, where it is
--       done and somebody knows, for how many seconds the lease was held
-- Returns 1, or 0 when the lease was not there any more.
local root, to = ARGV[1], ARGV[4]
local lease = release(root, ARGV[2], ARGV[3])
if not lease then return 0 end
if to == '' and (ARGV[5] or '') ~= '' and CAPPED[lease.domain] then
  local key = root .. ':' .. lease.domain .. ':seconds:' .. lease.tenant
  local before, seconds = tonumber(redis.call('GET', key) or ARGV[5]), tonumber(ARGV[5])
  redis.call('SET', key, string.format('%.3f', before + (seconds - before) / 5), 'EX', 86400)
end
if to == 'head' then
  push(root, lease.domain, lease.tenant, lease.queue, lease.rank, lease.entry, true)
elseif to ~= '' then
  redis.call('LPUSH', root .. ':dead', lease.queue .. '|' .. to .. '|' .. string.match(lease.entry, ENTRY_MESSAGE))
end
-- With work and room it is in the ring, or about to be leased: only who waits for a slot, or has got
-- its first work back, has to be woken.
if to == 'head' or redis.call('SISMEMBER', root .. ':' .. lease.domain .. ':capped', lease.tenant) == 1 then
  wake(root, lease.domain, lease.tenant)
end
return 1
