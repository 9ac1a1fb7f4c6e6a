-- Goes before every script: big-endian numbers of 2, 4 or 6 bytes, in one step each.

local function number(text, at, size)
  local a, b, c, d, e, f = string.byte(text, at, at + size - 1)
  if size == 2 then return a * 256 + b end
  local n = ((a * 256 + b) * 256 + c) * 256 + d
  return e and (n * 256 + e) * 256 + f or n
end

local function bytes(n, size)
  local low = n % 0x1000000
  local high = (n - low) / 0x1000000
  local out = string.char(
    math.floor(high / 0x10000), math.floor(high / 0x100) % 0x100, high % 0x100,
    math.floor(low / 0x10000), math.floor(low / 0x100) % 0x100, low % 0x100)
  return string.sub(out, -size)
end
