"""What assets need from outside: the user's slide folder, MLflow."""
