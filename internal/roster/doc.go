// Package roster knows who the nodes of a chain are: their names, their ids and where
// they are dialled. It writes that into the files of a node, each node leaving itself
// out, and tells where those files say otherwise.
//
// It refuses to know where ids come from and who may restart a node, and it guesses
// nothing: which node has which address is written in an inventory, or in a list that
// names both. Its invariant: an observer comes into nobody's list unless somebody says
// so, and what is in a list and of nobody that it knows stays there unless somebody
// says otherwise.
package roster
