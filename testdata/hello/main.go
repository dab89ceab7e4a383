// Hello is the one program in the bootable image of the end-to-end tests: it
// prints the greeting that they wait for.
package main

import "os"

func main() {
	if _, err := os.Stdout.WriteString("hello from larder\n"); err != nil {
		os.Exit(1)
	}
}
