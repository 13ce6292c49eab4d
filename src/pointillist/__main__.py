from pointillist.cli import main

main()
