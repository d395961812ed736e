module riffle/pause

go 1.26.0
