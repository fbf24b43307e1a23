// Command eddy backs up a node that keeps its state by consensus: it holds the
// node still for a moment, stages its files, starts it again, and streams the
// stage to object storage as archives that stock tools restore.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
