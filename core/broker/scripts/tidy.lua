-- The repair looks at one slice of a domain's tenants with work: who sleeps although there is room,
-- wakes. In slices, because a script holds up everybody.
--
-- ARGV: root, domain, cursor ("0" begins), how many to look at
-- Returns the next cursor; "0" when all have been seen.
local root, domain = ARGV[1], ARGV[2]
local P = root .. ':' .. domain
local slice = redis.call('ZSCAN', P .. ':waiting', ARGV[3], 'COUNT', ARGV[4])
for index = 1, #slice[2], 2 do
  local tenant = slice[2][index]
  if not redis.call('ZSCORE', P .. ':ring', tenant) then wake(root, domain, tenant) end
end

-- What a tenant has paid for in the past says nothing any more.
local clock = number_at('GET', P .. ':clock')
local paid = redis.call('HRANDFIELD', P .. ':finish', 100, 'WITHVALUES')
for index = 1, #paid, 2 do
  if tonumber(paid[index + 1]) <= clock then redis.call('HDEL', P .. ':finish', paid[index]) end
end
return slice[1]
