-- The next message of a busy worker, without a wait: the ring is asked and the lease given in one step.
--
-- Domains are asked in the order given. A tenant that cannot be served is passed over; after a
-- hundred of them the worker waits, which asks again: a script holds up everybody.
--
-- ARGV: root, worker, lease (ms), ageing (ms a rank), domain...
-- Returns queue, delivery tag, message; or nothing.
local root = ARGV[1]
local worker = {name = ARGV[2], lease_ms = tonumber(ARGV[3]), ageing = tonumber(ARGV[4])}
for index = 5, #ARGV do
  for _ = 1, 100 do
    local popped = redis.call('ZPOPMIN', root .. ':' .. ARGV[index] .. ':ring')
    if not popped[1] then break end
    local leased = serve(root, ARGV[index], popped[1], tonumber(popped[2]), worker)
    if leased then return leased end
  end
end
return false
