from ximler.cli.main import main

main()
