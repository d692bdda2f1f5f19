"""Who trades with whom, at what price: the book, continuous matching, itayose."""
