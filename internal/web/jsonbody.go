package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"raftkv/internal/problem"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// ReadJSON reads the body of a request into the struct at v, strictly: what is
// not understood exactly is refused, never guessed at. A body without a content
// type counts as JSON, and so does one that curl -d calls a form, since what a browser may
// have been tricked into sending is refused before (OriginGuard). An empty one is {}.
func ReadJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	if err := TakesJSON(r); err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return BodyError(err)
	}
	return DecodeJSON(body, v)
}

// TakesJSON returns problem.ErrMediaType if a request says that its body is no JSON.
func TakesJSON(r *http.Request) error {
	ct := r.Header.Get("Content-Type")
	if ct == "" {
		return nil
	}
	if len(r.Header["Content-Type"]) > 1 {
		return fmt.Errorf("%w: Content-Type is there more than once", problem.ErrMediaType)
	}
	media, _, err := mime.ParseMediaType(ct)
	if form := media == "application/x-www-form-urlencoded"; err != nil || media != "application/json" && !form {
		return fmt.Errorf("%w: %s; send JSON with -H 'Content-Type: application/json'", problem.ErrMediaType, Clip(ct))
	}
	return nil
}

// DecodeJSON is ReadJSON of a body that was read.
func DecodeJSON(body []byte, v any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	switch err := decodeStrict(body, v); {
	case errors.Is(err, problem.ErrTooLarge):
		return err
	case err != nil:
		return fmt.Errorf("%w: %.*s", problem.ErrBadRequest, maxJSONError, err.Error())
	}
	return nil
}

// maxJSONError bounds what is said of bad JSON: encoding/json quotes a number that does
// not fit, however long it is.
const maxJSONError = 300

// MaxElements is how many elements an array in a request has at most. It is looked at
// before anything is made of them.
const MaxElements = 128

// decodeStrict decodes one JSON value into the struct at v. encoding/json alone
// takes the last of two equal names, ignores case, and replaces what is not
// Unicode; here each of these is an error, and so are unknown names, null, and
// anything behind the value. Types in v are structs with json tags, slices,
// pointers to these, and plain values.
func decodeStrict(body []byte, v any) error {
	if !utf8.Valid(body) {
		return errors.New("the JSON is not valid UTF-8")
	}
	if !validEscapes(body) {
		return errors.New("the JSON has half of a surrogate pair")
	}
	if longNumber(body) {
		return fmt.Errorf("a number is longer than %d characters", maxNumber)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber() // whether a number fits shows when it is put where it belongs
	if err := checkNames(dec, reflect.TypeOf(v)); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the JSON value")
	}
	err := json.Unmarshal(body, v)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%q: %s in place of %s", wrong.Field, article(wrong.Value), kindName(wrong.Type))
	}
	return err
}

// article puts the article before what encoding/json calls a kind of value.
func article(value string) string {
	kind, _, _ := strings.Cut(value, " ") // of a number, the number follows
	if kind == "array" || kind == "object" {
		return "an " + kind
	}
	return "a " + value
}

// kindName is what JSON calls the kind of value that a Go type takes.
func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "an array"
	case reflect.Uint64:
		return "a whole number of 64 bits without a sign"
	}
	return "an object"
}

// checkNames reads one JSON value that is to become a t, and refuses names that
// t does not have and names that come twice. It goes no deeper than t does.
func checkNames(dec *json.Decoder, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	tok, err := dec.Token()
	switch {
	case err != nil:
		return jsonError(err)
	case tok == nil:
		return errors.New("null is not taken; leave the name out")
	case tok == json.Delim('{') && t.Kind() == reflect.Struct:
		return checkObject(dec, t)
	case tok == json.Delim('[') && t.Kind() == reflect.Slice:
		for n := 0; dec.More(); n++ {
			if n == MaxElements {
				return fmt.Errorf("%w: an array has more than %d elements", problem.ErrTooLarge, MaxElements)
			}
			if err := checkNames(dec, t.Elem()); err != nil {
				return err
			}
		}
		_, err := dec.Token()
		return jsonError(err)
	case tok == json.Delim('{') || tok == json.Delim('['):
		return fmt.Errorf("there is a %v where it does not belong", tok)
	}
	return nil // a plain value: json.Unmarshal knows whether it fits
}

func checkObject(dec *json.Decoder, t reflect.Type) error {
	fields := make(map[string]reflect.Type)
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		fields[name] = f.Type
	}
	seen := make(map[string]bool)
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return jsonError(err)
		}
		name, _ := tok.(string) // the decoder lets nothing else be a name
		field, ok := fields[name]
		if !ok {
			return fmt.Errorf("unknown name %.64q", name)
		}
		if seen[name] {
			return fmt.Errorf("%q is there twice", name)
		}
		seen[name] = true
		if err := checkNames(dec, field); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	_, err := dec.Token()
	return jsonError(err)
}

func jsonError(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the JSON ends too early")
	}
	return err
}

// validEscapes reports whether each \u of a JSON text stands for a character
// alone or together with the next.
func validEscapes(body []byte) bool {
	for i := 0; i < len(body); i++ {
		if body[i] != '\\' {
			continue
		}
		i++ // what is escaped, a backslash too
		r, ok := escapedRune(body, i)
		if !ok || !utf16.IsSurrogate(r) {
			continue
		}
		low, _ := escapedRune(body, i+6)
		if utf16.DecodeRune(r, low) == utf8.RuneError || body[i+5] != '\\' {
			return false
		}
		i += 10
	}
	return true
}

// maxNumber bounds the length of a number. All that are taken have 20 digits at most.
const maxNumber = 64

// longNumber reports whether a JSON text has a number that is longer than any that is
// taken. encoding/json makes several copies of one, and as many again to say why it does
// not fit.
func longNumber(body []byte) bool {
	text, run := false, 0 // whether i is in a string, and how long the number there is
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text, run = !text, 0
		case !text && (c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'):
			if run++; run > maxNumber {
				return true
			}
		default:
			run = 0
		}
	}
	return false
}

// escapedRune reads uXXXX at i.
func escapedRune(body []byte, i int) (rune, bool) {
	if i+5 > len(body) || body[i] != 'u' {
		return 0, false
	}
	r, err := strconv.ParseUint(string(body[i+1:i+5]), 16, 16)
	return rune(r), err == nil
}
