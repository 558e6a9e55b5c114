-- Tenants go back into the ring if they have work and room: one that was popped for nothing, or some
-- that the repair looks at.
--
-- ARGV: root, domain, tenant...
for index = 3, #ARGV do wake(ARGV[1], ARGV[2], ARGV[index]) end
