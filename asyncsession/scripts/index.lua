-- The sessions of one principal: a sorted set of handles by the moment they end at the latest.
-- A session that joins is listed before its commit, marked as pending ('?' before the handle), and
-- confirmed after it. Entries past their moment are pruned whenever one is added or listed. One
-- member more, '', counts in its score, downwards, how often all of them were revoked: whoever
-- joins asks for that epoch before the commit and confirms it afterwards, so no revocation is
-- slipped past.
--
-- KEYS[1]   the principal's index
-- ARGV[1]   'join', 'confirm', 'drop', 'list' or 'revoke'
-- ARGV[2]   the handle of a session ('join', 'confirm'); an entry as it was listed ('drop'); empty
--           for 'list' and 'revoke'
-- ARGV[3]   ms: how long the session lasts at most ('join', 'confirm'), or the epoch is kept
--           ('revoke'); the score with which the entry was listed ('drop')
-- ARGV[4]   the epoch that must still be, or empty ('confirm')
-- ARGV[5]   how many entries are too many to keep quiet about, or empty ('join', 'confirm')
--
-- Returns   {code, now, list}
--   OK         done; 'list', 'revoke': entry and score in turn; 'join', 'confirm': the epoch, and
--              then the same, as it is in that instant, if there are more entries than ARGV[5];
--              'drop': nothing, and nothing is dropped that was added again since it was listed
--   GONE       'confirm': another epoch has begun, and nothing was added

local OK, GONE = 1, 4
local PENDING = '?'

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local index, verb, name = KEYS[1], ARGV[1], ARGV[2]

local function keep_for(ms)
  if redis.call('PTTL', index) < tonumber(ms) then redis.call('PEXPIRE', index, ms) end
end

local function entries()
  return redis.call('ZRANGEBYSCORE', index, 0, '+inf', 'WITHSCORES')
end

if verb == 'drop' then
  if redis.call('ZSCORE', index, name) == ARGV[3] then redis.call('ZREM', index, name) end
  return {OK, now, {}}
end
redis.call('ZREMRANGEBYSCORE', index, 0, string.format('%.0f', now))
if verb == 'join' or verb == 'confirm' then
  local epoch = tostring(redis.call('ZSCORE', index, '') or 0)
  if ARGV[4] ~= '' and ARGV[4] ~= epoch then return {GONE, now, {}} end
  if verb == 'confirm' then redis.call('ZREM', index, PENDING .. name) else name = PENDING .. name end
  local known = tonumber(redis.call('ZSCORE', index, name) or 0)
  redis.call('ZADD', index, string.format('%.0f', math.max(now + ARGV[3], known + 1)), name)
  keep_for(ARGV[3])
  local few = tonumber(ARGV[5])
  local found = few and entries() or {}
  if few and #found <= 2 * few then found = {} end
  table.insert(found, 1, epoch)
  return {OK, now, found}
end
if verb == 'revoke' then
  redis.call('ZINCRBY', index, -1, '')
  keep_for(ARGV[3])
end
return {OK, now, entries()}
