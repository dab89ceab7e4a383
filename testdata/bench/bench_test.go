package main

import "testing"

func TestParseAnswer(t *testing.T) {
	const ok = "HTTP/1.1 206 Partial Content\r\nServer: x\r\ncontent-length:  7\r\nConnection: Close\r\n\r\n"
	tests := map[string]struct {
		head  string
		want  answer
		wrong bool
	}{
		"all":               {head: ok, want: answer{len(ok), 206, 7, true}},
		"no length":         {head: "HTTP/1.1 200 OK\r\n\r\n", want: answer{19, 200, -1, false}},
		"negative length":   {head: "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", wrong: true},
		"length, no number": {head: "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n", wrong: true},
		"not HTTP":          {head: "SSH-2.0-OpenSSH_9.2\r\n\r\n", wrong: true},
		"no status":         {head: "HTTP/1.1 OK whatever\r\n\r\n", wrong: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseAnswer([]byte(test.head))
			if test.wrong != (err != nil) || err == nil && got != test.want {
				t.Errorf("got %+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}
