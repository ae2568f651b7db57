// Package penalty makes guessing slow and inventing cheap to bear: what failed logins cost the address they come from, and
// how many names that nobody knows yet may be tried. One small table of addresses serves both; it cannot grow.
//
// An attempt is begun before anything is verified and ended behind its refusal:
//
//	Begin ──► auth ──┬─ verified, or the user has an entry ─────────────────► upstream ─┬─► Accepted ─► End
//	(waits)          │                                                                  │
//	                 └─ the backend verifies, and the name has no entry ─► Provisional ─┘─► Failed ──► End
//	                                                                       (waits)          (waits)
//
// The penalty is that of Dovecot's auth. A refusal for a wrong password comes FailureDelay (2 s) after the attempt began at
// the earliest, whoever verified and however fast; the next attempt of the address waits for twice that, the ones after it
// for 8 and then 15 s. A login that succeeds ends this. An attempt with a user and password that failed among the last
// ten changes nothing: a device with an old password knocks for ever and guesses nothing. Other than Dovecot's, a
// punished address has few attempts at a time, so that it gains nothing by many connections.
//
// An address is an IPv4 address or an IPv6 /64, which is what one customer has. Exempt networks (webmail, other proxies)
// are not punished.
//
// With nopassword the proxy cannot know which names exist, and everybody may invent some. Provisional bounds how many
// go to the backends: a login takes a token of its address and one of all addresses together, and gives both back when the
// backend accepted it. Honest logins thus cost nothing however many they are, for as long as no more are on their way than
// there are tokens; names that the backends refuse are limited to the rate at which tokens come back by themselves.
// Addresses from which somebody has logged in lately share tokens of their own, so that a flood from strange ones does not
// keep them out. Nothing is remembered of a name. The director makes its entry after Accepted.
package penalty
