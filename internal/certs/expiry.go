package certs

import (
	"raftkv/internal/meter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// warnBefore is how long before a certificate expires the log begins to warn, and
// warnEvery how often it does.
const (
	warnBefore = 14 * 24 * time.Hour
	warnEvery  = 24 * time.Hour
)

// warning is what the log was told last about the time of certificates.
type warning struct {
	what string
	at   time.Time
}

// warn warns of certificates that expire soon, or are not valid now: at once when
// that begins, and then once a day.
func (k *Keeper) warn(s *set, now time.Time) {
	what := ""
	switch left := s.ends().Sub(now); {
	case s.wrongAt(now) != nil:
		what = "wrong"
	case left < 0:
		what = "ca"
	case left < warnBefore:
		what = "soon"
	}
	if what == "" || what == k.warned.what && now.Sub(k.warned.at) < warnEvery {
		return
	}
	k.warned = warning{what, now}
	switch what {
	case "wrong":
		k.log.Warn("this node's certificate is not valid now, and others may refuse it; it goes on with it until there is a new one",
			zap.String("file", k.cfg.Files.Cert), zap.Error(s.wrongAt(now)))
	case "ca":
		k.log.Warn("all CAs have expired, so no certificate of the other side is valid; the node goes on until there is a new one",
			zap.String("file", k.cfg.Files.CA), zap.Time("expired", s.caUntil))
	default:
		file := k.cfg.Files.Cert
		if s.ends().Before(s.until) {
			file = k.cfg.Files.CA
		}
		k.log.Warn("a certificate expires soon", zap.String("file", file),
			zap.Time("expires", s.ends()), zap.Int("days", int(s.ends().Sub(now)/(24*time.Hour))))
	}
}

// Register registers the metrics of this door; each has its name as a label.
func (k *Keeper) Register(reg prometheus.Registerer) {
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"door": k.cfg.Door}, reg)
	meter.Gauge(reg, "raftkv_certificate_expiry_seconds", "Time until the certificate in force or its CA expires; negative afterwards.",
		func() float64 { return time.Until(k.inForce.Load().ends()).Seconds() })
	meter.Gauge(reg, "raftkv_certificate_trouble", "1 if the files of certificates have changed and cannot be used, so that the old ones stay in force.",
		func() float64 {
			if k.Trouble() != nil {
				return 1
			}
			return 0
		})
	meter.Counters(reg, "raftkv_certificate_reloads_total", "Changes of the files of certificates, by what came of them.", "result",
		map[string]func() uint64{"ok": k.reloaded.Load, "failed": k.failed.Load})
}
