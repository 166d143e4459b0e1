module moorage.test/clients

go 1.26

require github.com/hashicorp/nomad/api v0.0.0-20220707195938-75f4c2237b28

require (
	github.com/gorilla/websocket v1.4.2 // indirect
	github.com/hashicorp/cronexpr v1.1.1 // indirect
	github.com/hashicorp/go-cleanhttp v0.5.2 // indirect
	github.com/hashicorp/go-rootcerts v1.0.2 // indirect
	github.com/mitchellh/go-homedir v1.1.0 // indirect
	github.com/mitchellh/mapstructure v1.4.3 // indirect
)
