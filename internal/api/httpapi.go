package api

const MaxMemberBytes = 4096 // of the body of POST /ID
