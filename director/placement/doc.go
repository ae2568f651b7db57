// Package placement answers one question: which host does a user belong to when nobody has decided yet?
// It does so bit for bit as Dovecot 2.3's director (user-hash.md), so that both agree within one ring:
//
//	user name ──Format──► key ──MD5──► 32-bit hash ──Ring──► host
//
// A Format expands director_username_hash and hashes the result; a Ring is the consistent-hash ring over
// the hosts of one tag. Neither depends on load, on other users or on time.
package placement
