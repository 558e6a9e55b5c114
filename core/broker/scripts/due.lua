-- Delayed messages that are due join their queues.
--
-- ARGV: root, how many of a domain at most, domain...
-- Returns how many there were of the domain that had most.
local root, limit, most = ARGV[1], ARGV[2], 0
for index = 3, #ARGV do
  local domain = ARGV[index]
  local P = root .. ':' .. domain
  local due = redis.call('ZRANGE', P .. ':delayed', '-inf', now_ms(), 'BYSCORE', 'LIMIT', 0, limit)
  for _, member in ipairs(due) do
    redis.call('ZREM', P .. ':delayed', member)
    local tenant, queue, entry = string.match(member, '^([^|]*)|([^|]*)|(.*)$')
    local _, rank = string.match(entry, ENTRY)
    push(root, domain, tenant, queue, rank, entry, false)
    wake(root, domain, tenant)
  end
  most = math.max(most, #due)
end
return most
