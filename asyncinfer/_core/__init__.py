"""What runs behind a dispatcher. Nothing in here is public: it may change with any release."""
