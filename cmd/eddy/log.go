package main

import (
	"io"
	"time"

	"github.com/rs/zerolog"
)

// newLog writes log lines in one of the two formats, console or json.
func newLog(w io.Writer, format, component string) zerolog.Logger {
	if format != "json" {
		w = zerolog.ConsoleWriter{Out: w, NoColor: true, TimeFormat: time.DateTime}
	}
	return zerolog.New(w).With().Timestamp().Str("component", component).Logger()
}

// log is the logger of a component: what is tried again and what to look at, all
// steps with -v, only errors with -q.
func (a *app) log(format, component string) zerolog.Logger {
	level := zerolog.WarnLevel
	switch {
	case a.verbose:
		level = zerolog.DebugLevel
	case a.quiet:
		level = zerolog.ErrorLevel
	}
	return newLog(a.ui.Writer(), format, component).Level(level)
}
