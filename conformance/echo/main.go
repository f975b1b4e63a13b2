// Command echo stands in for the image echo-advanced of the Gateway API's conformance suite: a server that
// answers each request with what it saw, and, under the name `client`, a client that prints the answers.
//
// Only the suite talks to it, by what it reads: a line `Key=value` for each thing that there is to say.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	run := serve
	if filepath.Base(os.Args[0]) == "client" {
		run = ask
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
