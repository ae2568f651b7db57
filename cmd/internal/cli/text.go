package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// table aligns columns; a header that begins with ">" is a column of numbers, aligned right.
type table struct {
	header []string
	rows   [][]string
}

func newTable(header ...string) *table { return &table{header: header} }

func (t *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		if row[i] = clean(fmt.Sprint(c)); row[i] == "" {
			row[i] = "-" // columns stay columns for awk, too
		}
	}
	t.rows = append(t.rows, row)
}

func (t *table) write(w io.Writer) {
	right := make([]bool, len(t.header))
	width := make([]int, len(t.header))
	titles := make([]string, len(t.header))
	for i, h := range t.header {
		titles[i], right[i] = strings.CutPrefix(h, ">")
	}
	lines := append([][]string{titles}, t.rows...)
	for _, line := range lines {
		for i, cell := range line {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, line := range lines {
		var b strings.Builder
		for i, cell := range line {
			if i > 0 {
				b.WriteString("  ")
			}
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if right[i] {
				b.WriteString(pad + cell)
			} else {
				b.WriteString(cell + pad)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// clean makes text from outside harmless for a terminal: a user's name is what somebody typed
// into a login, escape sequences included.
func clean(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	return strconv.QuoteToGraphic(s)
}

// span shows the two largest units of a time: "3d 4h", "2m 5s", "0s".
func span(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	units := []struct {
		name string
		size time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}
	for i, u := range units {
		if d < u.size && u.name != "s" {
			continue
		}
		s := fmt.Sprintf("%d%s", d/u.size, u.name)
		if rest := d % u.size; u.name != "s" && rest >= units[i+1].size {
			s += fmt.Sprintf(" %d%s", rest/units[i+1].size, units[i+1].name)
		}
		return s
	}
	return ""
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// bytesText shows a size in binary units: "700 B", "1.2 GiB".
func bytesText(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1024, 0
	for ; f >= 1024 && unit < 4; unit++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[unit])
}

// count is "1 user" or "2 users".
func count[N int | uint64](n N, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
