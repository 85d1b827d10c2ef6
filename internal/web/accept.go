package web

import (
	"net/http"
	"strings"
)

// AcceptsOnly reports whether a request takes this media type and no other (RFC 9110
// §12.5.1). Who takes anything besides, as some clients always say, has not asked for it.
func AcceptsOnly(h http.Header, mediaType string) bool {
	found := false
	for part := range strings.SplitSeq(strings.Join(h["Accept"], ","), ",") {
		media, params, _ := strings.Cut(strings.ToLower(part), ";")
		if strings.TrimSpace(part) == "" {
			continue // RFC 9110 §5.6.1: an empty element is none
		}
		if strings.TrimSpace(media) != mediaType || refuses(params) {
			return false
		}
		found = true
	}
	return found
}

// refuses reports whether the weight among the parameters of a media range is 0.
func refuses(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		if weight, ok := strings.CutPrefix(strings.TrimSpace(p), "q="); ok {
			return strings.Trim(weight, "0.") == ""
		}
	}
	return false
}
