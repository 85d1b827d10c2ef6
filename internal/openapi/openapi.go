// Package openapi answers: what does the client API take and answer, for a program that
// reads OpenAPI 3.1? The document is written by hand, and tests hold all answers that they
// get against it (openapitest). The package knows nothing else.
package openapi

import _ "embed"

// Path is where a node serves Document.
const Path = "/v1/openapi.yaml"

// Document describes all requests and answers of the client API, in YAML.
//
//go:embed openapi.yaml
var Document string
