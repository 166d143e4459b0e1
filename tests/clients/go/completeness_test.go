package clients

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"testing"
)

// Every call that the client has on these is made by some test: a call that a later client adds shows up here.
func TestEveryCallOfTheClientIsMade(t *testing.T) {
	c := connect(t)
	made := findCalls(t)
	for name, handle := range map[string]any{
		"CSIVolumes":  c.CSIVolumes(),
		"CSIPlugins":  c.CSIPlugins(),
		"Namespaces":  c.Namespaces(),
		"Search":      c.Search(),
		"Status":      c.Status(),
		"Regions":     c.Regions(),
		"EventStream": c.EventStream(),
	} {
		kind := reflect.TypeOf(handle)
		mustHold(t, "calls of "+name, kind.NumMethod() > 0, kind)
		for number := range kind.NumMethod() {
			if call := name + "." + kind.Method(number).Name; !made[call] {
				t.Errorf("no test makes the call %s", call)
			}
		}
	}
}

// findCalls reads `c.CSIVolumes().List(` and the like in these tests.
func findCalls(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	check(t, "list the sources", err)
	made := map[string]bool{}
	for _, file := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		check(t, "parse "+file, err)
		ast.Inspect(tree, func(node ast.Node) bool {
			if call, isCall := node.(*ast.CallExpr); isCall {
				if method, isMethod := call.Fun.(*ast.SelectorExpr); isMethod {
					if handle, isCall := method.X.(*ast.CallExpr); isCall {
						if of, isMethod := handle.Fun.(*ast.SelectorExpr); isMethod {
							made[of.Sel.Name+"."+method.Sel.Name] = true
						}
					}
				}
			}
			return true
		})
	}
	return made
}
