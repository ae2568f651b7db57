package lmtp

import "bytes"

// body finds the end of a mail and makes its lines unambiguous on the way.
type body struct{ at position }

// position is where in a line the next byte stands.
type position uint8

const (
	lineStart position = iota // behind CR LF, or at the very beginning
	dot                       // behind a "." there, which has not gone on yet
	dotCR                     // behind ".\r" there, which has not gone on yet
	inside
	insideCR
	bareStart // behind a bare LF: a dot here was not doubled by the client
)

// feed appends to out what p is for the backends. The rest is what stands behind the end of the mail, once that is there;
// the line with the dot is not in out.
func (b *body) feed(out, p []byte) (_, rest []byte, ended bool) {
	for len(p) > 0 {
		c := p[0]
		switch b.at {
		case lineStart:
			if c == '.' {
				b.at, p = dot, p[1:]
				continue
			}
		case dot:
			switch c {
			case '\r':
				b.at, p = dotCR, p[1:]
				continue
			case '\n': // an empty line with its dot doubled, so to speak
			default:
				out = append(out, '.')
			}
		case dotCR:
			if c == '\n' {
				b.at = lineStart
				return out, p[1:], true
			}
			out = append(out, '.', '\r')
		case insideCR:
			if c == '\n' {
				out = append(out, c)
				b.at, p = lineStart, p[1:]
				continue
			}
		case bareStart:
			if c == '.' {
				out = append(out, '.')
			}
		}
		// From here on it does not matter how the line began.
		end := bytes.IndexByte(p, '\n')
		switch {
		case end < 0:
			out = append(out, p...)
			b.at = inside
			if p[len(p)-1] == '\r' {
				b.at = insideCR
			}
			return out, nil, false
		case end > 0 && p[end-1] == '\r':
			out = append(out, p[:end+1]...)
			b.at = lineStart
		default:
			out = append(append(out, p[:end]...), '\r', '\n')
			b.at = bareStart
		}
		p = p[end+1:]
	}
	return out, nil, false
}
