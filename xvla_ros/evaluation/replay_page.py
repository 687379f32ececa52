def write_page(document, figures, path):
    path.write_text("")
