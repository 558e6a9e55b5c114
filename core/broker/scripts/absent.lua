-- Which of these messages the broker does not have: they neither wait nor are leased.
--
-- ARGV: root, correlation id...
-- Returns the ids.
local root, absent = ARGV[1], {}
for index = 2, #ARGV do
  if redis.call('SISMEMBER', root .. ':waiting', ARGV[index]) == 0
    and redis.call('HEXISTS', root .. ':held', ARGV[index]) == 0 then
    absent[#absent + 1] = ARGV[index]
  end
end
return absent
