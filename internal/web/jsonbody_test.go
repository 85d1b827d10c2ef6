package web

import (
	"errors"
	"net/http/httptest"
	"raftkv/internal/problem"
	"strings"
	"testing"
)

type strictBody struct {
	A    string  `json:"a"`
	N    *uint64 `json:"n,omitempty"`
	List []struct {
		B string `json:"b"`
	} `json:"list"`
	In struct {
		C bool `json:"c"`
	} `json:"in"`
	Texts []string `json:"texts"`
}

// Guarantee: JSON in a request is taken only when every part of it is
// understood.
func TestDecodeStrict(t *testing.T) {
	for _, good := range []string{
		`{}`, ` {"a":"x"} `, `{"a":"x","n":18446744073709551615,"list":[{"b":"y"},{}],"in":{"c":true},"texts":["a",""]}`,
		`{"a":"\ud83d\ude00 \u00e4 \\ud800 \ufffd \"\\"}`, `{"list":[]}`, "{\"a\":\"\ufffd\"}",
	} {
		var v strictBody
		if err := decodeStrict([]byte(good), &v); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		``, ` `, `{`, `{"a"`, `{"a":`, `{"a":"x"`, `{"a":"x",}`, `{} {}`, `{}x`, `{}]`, `[]`, `"a"`, `1`, `null`, `true`,
		`{"b":1}`, `{"A":"x"}`, `{"a":"x","a":"x"}`, `{"a":"x","\u0061":"y"}`, `{"a":1}`, `{"a":["x"]}`, `{"a":{"b":1}}`, `{"a":null}`, `{"n":null}`,
		`{"n":-1}`, `{"n":1.5}`, `{"n":"1"}`, `{"n":18446744073709551616}`, `{"list":{}}`, `{"list":[1]}`, `{"list":[{"B":"y"}]}`,
		`{"list":[{"b":"y","b":"z"}]}`, `{"list":[{"b":"y"}`, `{"in":[]}`, `{"in":{"c":true,"d":1}}`, `{"texts":[null]}`, `{"texts":[[]]}`,
		"{\"a\":\"\xff\"}", "{\"a\":\"\xed\xa0\x80\"}", `{"a":"\ud800"}`, `{"a":"\ude00"}`, `{"a":"\ud800\u0041"}`, `{"a":"\ud800x\ude00"}`,
		`{"a":"\u12"}`, `{"a":"\ud83d\`, `{"a":"\`, "\xef\xbb\xbf{}", `{"a":"x" "n":1}`, strings.Repeat("[", 1<<20), strings.Repeat(`{"in":`, 1<<16),
	} {
		var v strictBody
		if err := decodeStrict([]byte(bad), &v); err == nil {
			t.Errorf("%.60s: taken, as %+v", bad, v)
		}
	}
}

// Guarantee: a number that is too long is found wherever it stands, before anything is
// made of it, and text is no number.
func TestLongNumber(t *testing.T) {
	most := strings.Repeat("9", maxNumber)
	for text, want := range map[string]bool{
		most: false, most + "9": true, "-" + most: true, "1e" + most: true, "0." + most: true, `{"n":` + most + `}`: false, `{"n":` + most + `0}`: true,
		`{"n":` + most + `,"m":` + most + `}`: false, most + " " + most: false, `"` + most + `9"`: false, `{"` + most + `9":1}`: false,
		`"\"` + most + `9"`: false, `"\\"` + most + `9`: true, `"\"` + most + `9`: false, `"a\\\"` + most + `9"`: false, `["` + most + `",` + most + `9]`: true, `"\`: false,
	} {
		if got := longNumber([]byte(text)); got != want {
			t.Errorf("%.80s: %t, want %t", text, got, want)
		}
	}
	var v strictBody
	if err := DecodeJSON([]byte(`{"n":`+strings.Repeat("9", 1<<20)+`}`), &v); !errors.Is(err, problem.ErrBadRequest) || len(err.Error()) > 2*maxJSONError {
		t.Errorf("%.100v", err)
	}
	if err := DecodeJSON([]byte(`{"a":`+strings.Repeat(`"\u0030`, 1<<16)+`}`), &v); !errors.Is(err, problem.ErrBadRequest) || len(err.Error()) > 2*maxJSONError {
		t.Errorf("%.100v", err)
	}
}

// Guarantee: no JSON makes the server panic.
func FuzzDecodeStrict(f *testing.F) {
	f.Add([]byte(`{"a":"\ud83d\ude00","n":1,"list":[{"b":"y"}],"in":{"c":true}}`))
	f.Add([]byte(`"\ud800\`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var v strictBody
		_ = decodeStrict(b, &v) // whether it is taken is not the question
	})
}

// Guarantee: what says that it is no JSON is not read as such.
func TestReadJSON(t *testing.T) {
	for ct, want := range map[string]error{
		"": nil, "application/json": nil, "Application/JSON; charset=utf-8": nil, "application/x-www-form-urlencoded": nil,
		"text/plain": problem.ErrMediaType, "application/json-patch+json": problem.ErrMediaType, ";": problem.ErrMediaType,
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(`{"a":"x"}`))
		if ct != "" {
			r.Header.Set("Content-Type", ct)
		}
		var v strictBody
		if err := ReadJSON(httptest.NewRecorder(), r, 100, &v); !errors.Is(err, want) || (want == nil && v.A != "x") {
			t.Errorf("%q: %v, %+v", ct, err, v)
		}
	}
	r := httptest.NewRequest("POST", "/", strings.NewReader(`{"a":"x"}`))
	r.Header["Content-Type"] = []string{"application/json", "text/plain"}
	if err := ReadJSON(httptest.NewRecorder(), r, 100, new(strictBody)); !errors.Is(err, problem.ErrMediaType) {
		t.Errorf("two types: %v", err)
	}
	r = httptest.NewRequest("POST", "/", strings.NewReader(`{"a":"`+strings.Repeat("x", 100)+`"}`))
	if err := ReadJSON(httptest.NewRecorder(), r, 100, new(strictBody)); !errors.Is(err, problem.ErrTooLarge) {
		t.Errorf("too long: %v", err)
	}
	if err := ReadJSON(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil), 100, new(strictBody)); err != nil {
		t.Errorf("empty: %v", err)
	}
}

// A value of the wrong kind is named in JSON's words.
func TestWrongKindIsNamed(t *testing.T) {
	for body, want := range map[string]string{
		`{"id":"2"}`:    `"id": a string in place of a whole number of 64 bits without a sign`,
		`{"id":1E400}`:  `"id": a number 1E400 in place of a whole number of 64 bits without a sign`,
		`{"role":[1]}`:  `does not belong`,
		`{"role":true}`: `"role": a bool in place of a string`,
	} {
		var v struct {
			ID   *uint64 `json:"id"`
			Role *string `json:"role"`
		}
		if err := decodeStrict([]byte(body), &v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
}
