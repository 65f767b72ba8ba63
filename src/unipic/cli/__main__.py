from unipic.cli import main

main()
