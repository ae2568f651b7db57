package health

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestOpinion runs testdata/opinion.txt: what each check means to one director. A line is "[N x] wait result";
// each change is printed with the time since the beginning.
func TestOpinion(t *testing.T) {
	datadriven.RunTest(t, "testdata/opinion.txt", func(t *testing.T, d *datadriven.TestData) string {
		start := time.Unix(1e9, 0)
		now, wayOut := start, start
		o := opinion{Rules: Rules{Rise: 2, Fall: 3, FlapLimit: 3, FlapWindow: 10 * time.Minute}}
		d.MaybeScanArgs(t, "rise", &o.Rise)
		d.MaybeScanArgs(t, "fall", &o.Fall)
		d.MaybeScanArgs(t, "flap-limit", &o.FlapLimit)
		var out strings.Builder
		begin := func() {
			if o.running.IsZero() {
				o.begin(now)
			}
		}
		note := func(changed bool) {
			if !changed {
				return
			}
			fmt.Fprintf(&out, "%v %v", now.Sub(start), o.verdict)
			if o.held.After(now) {
				fmt.Fprintf(&out, ", held for %v", o.held.Sub(now))
			}
			out.WriteByte('\n')
		}
		for line := range strings.Lines(d.Input) {
			times := 1
			if n, rest, ok := strings.Cut(line, " x "); ok {
				var err error
				if times, err = strconv.Atoi(n); err != nil {
					t.Fatal(err)
				}
				line = rest
			}
			words := strings.Fields(line)
			wait, err := time.ParseDuration(words[0])
			if err != nil {
				t.Fatal(err)
			}
			for range times {
				now = now.Add(wait)
				switch what := strings.Join(words[1:], " "); what {
				case "good", "bad alone":
					begin()
					o.result(now, what == "good")
				case "bad":
					begin()
					wayOut = now // another host was checked at the same time, and answered
					o.result(now, false)
				case "begin": // a check that takes longer
					begin()
				case "other": // another host answers
					wayOut = now
				case "":
				default:
					t.Fatalf("what is %q?", what)
				}
				note(o.settle(now, wayOut))
			}
		}
		fmt.Fprintf(&out, "says %v\n", o.says())
		return out.String()
	})
}
