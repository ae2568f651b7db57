package main

import (
	"os"
	"testing"
)

// The tests run this binary as the usher command.
const asCommand = "USHER_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Unsetenv(asCommand)
		main()
	}
	os.Exit(m.Run())
}
