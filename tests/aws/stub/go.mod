module riffle.invalid/stub

go 1.26.8

require github.com/hashicorp/terraform-plugin-go v0.29.0 // indirect
