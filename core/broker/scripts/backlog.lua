-- A tenant's backlog in a domain.
--
-- ARGV: root, domain, tenant
-- Returns how many wait, how many run, and the seconds that one takes of late ("" where nobody knows).
return backlog_of(ARGV[1] .. ':' .. ARGV[2], ARGV[3])
